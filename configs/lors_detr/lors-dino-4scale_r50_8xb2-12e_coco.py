# DINO with LORS on attention projections and FFN of its stacks.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/lorsified.py',
]

default_hooks = _base_.pop('run_hooks')
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
