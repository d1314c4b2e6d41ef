# The same model, evaluated on images that it has not seen.
_base_ = './lors-adamixer_r18_coco-tiny.py'

test_dataloader = dict(dataset=dict(ann_file='annotations/instances_val.json'))
test_evaluator = dict(
    ann_file='demo/coco_tiny/annotations/instances_val.json',
    prefix='held-out',
)
