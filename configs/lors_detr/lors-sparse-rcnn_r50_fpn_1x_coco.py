# Sparse R-CNN with LORS on attention, dynamic convolution and FFN.
_base_ = [
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    '../_base_/lorsified.py',
]

default_hooks = _base_.pop('run_hooks')
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
