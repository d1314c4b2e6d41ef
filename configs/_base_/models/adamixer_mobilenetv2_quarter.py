# AdaMixer with a quarter of its channels, points and heads and with all of its
# six stages, on a backbone that has seen ImageNet.
_base_ = './adamixer_r50.py'

model = dict(
    num_queries=60,
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        frozen_stages=4,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='demo/mobilenet_v2/mobilenet_v2-b0353104_mmdet.pth',
        ),
    ),
    neck=dict(in_channels=[24, 32, 96, 320], out_channels=64),
    decoder=dict(
        embed_dims=64,
        num_heads=2,
        in_points=8,
        out_points=32,
        feedforward_channels=512,
    ),
)
