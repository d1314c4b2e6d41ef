# AdaMixer's own 3x with 100 queries drops the rate later than its others.
_base_ = './adamw_1x.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500
    ),
    dict(type='MultiStepLR', by_epoch=True, end=36, milestones=[27, 33]),
]
