_base_ = [
    '../_base_/models/adamixer_mobilenetv2_quarter.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_800-iter.py',
]

model = dict(decoder=dict(num_classes=3))
