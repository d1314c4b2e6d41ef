# DINO with LORS on attention projections and FFN of its stacks.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

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
    detector='DINO',
    stacks={
        'encoder.layers': {
            're:self_attn.(value|output)_proj|ffn.+': dict(
                mode='lors', rank=32
            )
        },
        'decoder.layers': {
            're:self_attn.attn|cross_attn.(value|output)_proj|ffn.+': dict(
                mode='lors', rank=32
            )
        },
    },
)
