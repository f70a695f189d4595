# Table row "DETR-DC5" (500 epochs). The original trained it with one image a GPU, so it never saw
# padding, and found the AP to drop where test batches are padded: keep the test batch size at 1.
_base_ = 'detr_r50_16xb4-500e_coco.py'
model = dict(backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
train_dataloader = dict(batch_size=1)
