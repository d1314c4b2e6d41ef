# SPDX-License-Identifier: Apache-2.0
# The demo's detector, small enough to take a step in a fraction of a second,
# on images that are flipped and resized at random; for tests/soak.py.
_base_ = '../../configs/demo/lors-adamixer_r18_coco-tiny.py'

model = dict(
    num_queries=8,
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    decoder=dict(
        embed_dims=32,
        feedforward_channels=16,
        in_points=4,
        out_points=4,
        stacks=dict(mixing_kernels=dict(rank=2)),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(64, 64), (96, 96)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
train_cfg = dict(max_iters=40)
val_cfg = None
val_dataloader = None
val_evaluator = None
log_processor = dict(window_size=1)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=3),
)
custom_hooks = [dict(type='EMAHook')]
