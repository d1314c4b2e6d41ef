_base_ = [
    '../_base_/models/adamixer_mobilenetv2_quarter.py',
    '../_base_/datasets/deeppcb_detection.py',
    '../_base_/schedules/adamw_800-iter.py',
]

model = dict(decoder=dict(num_classes=6))
max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=False, milestones=[960]),
]
