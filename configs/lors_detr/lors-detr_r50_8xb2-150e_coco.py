# DETR with LORS on attention projections and FFN of its stacks.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

custom_imports = dict(
    imports=['lors_det.engine.lorsified'], allow_failed_imports=False
)
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
