# LORS at AdaMixer's own shape: 4 groups of 8 points (full size: 32).
_base_ = './lors-adamixer_mobilenetv2_deeppcb.py'

model = dict(decoder=dict(num_groups=4, in_points=8))
