_base_ = [
    '../adamixer/adamixer_r50_ms-3x_coco.py',
    '../_base_/models/lors.py',
]

model = dict(decoder=_base_.pop('lors'))
