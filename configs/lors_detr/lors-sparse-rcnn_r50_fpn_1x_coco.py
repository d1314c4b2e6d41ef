# Sparse R-CNN with LORS on attention, dynamic convolution and FFN.
_base_ = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(
    imports=[
        'lors_det.hooks.checkpoint',
        'lors_det.lors_detr',
        'lors_det.hooks.exact_resume',
    ],
    allow_failed_imports=False,
)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    resume=dict(type='ExactResumeHook'),
)
model = dict(
    type='Lorsified',
    detector='SparseRCNN',
    stacks={
        'roi_head.bbox_head': {
            're:attention.attn|instance_interactive_conv.+_layer|ffn.+': dict(
                mode='lors', rank=32
            )
        },
    },
)
