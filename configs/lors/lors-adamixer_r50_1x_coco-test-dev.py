_base_ = [
    '../_base_/models/adamixer_r50.py',
    '../_base_/models/lors.py',
    '../_base_/datasets/coco_test-dev.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(decoder=_base_.pop('lors'))
