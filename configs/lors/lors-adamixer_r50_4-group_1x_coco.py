# LORS at AdaMixer's own 4 groups and 32 points.
_base_ = [
    '../adamixer/adamixer_r50_1x_coco.py',
    '../_base_/models/lors.py',
]

model = dict(decoder=dict(stacks=_base_.pop('lors').stacks))
