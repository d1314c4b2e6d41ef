# DETR with LORS on attention projections and FFN of its stacks.
_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    '../_base_/lorsified.py',
]

default_hooks = _base_.pop('run_hooks')
model = dict(
    type='Lorsified',
    detector='DETR',
    stacks={
        'encoder.layers': {
            're:self_attn.attn|ffn.+': dict(mode='lors', rank=32)
        },
        'decoder.layers': {
            're:(self|cross)_attn.attn|ffn.+': dict(mode='lors', rank=32)
        },
    },
)
