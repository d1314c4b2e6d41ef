# Dense, at the groups and points of LORS.
_base_ = '../adamixer_mobilenetv2_bccd.py'

model = dict(decoder=dict(num_groups=2, in_points=16))
