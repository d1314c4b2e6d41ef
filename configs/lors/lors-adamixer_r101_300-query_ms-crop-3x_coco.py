_base_ = [
    '../adamixer/adamixer_r101_300-query_ms-crop-3x_coco.py',
    '../_base_/models/lors.py',
]

model = dict(decoder=_base_.pop('lors'))
