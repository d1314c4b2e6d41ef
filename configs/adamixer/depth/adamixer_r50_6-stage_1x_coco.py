_base_ = '../adamixer_r50_1x_coco.py'

model = dict(decoder=dict(num_stages=6))
