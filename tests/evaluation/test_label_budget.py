"""Oracle labels and true masks, by hand."""

import numpy as np
import torch

from possam.evaluation.label_budget import labels_of_true_masks, oracle_labels


def test_oracle_labels_by_hand() -> None:
    ids = np.array([[0, 0, 0, 1], [1, 1, 2, -1]])
    truth = np.array([[4, 4, 2, 3], [3, -1, -1, 4]])
    assert oracle_labels(ids, truth).tolist() == [[4, 4, 4, 3], [3, 3, -1, -1]]


def test_oracle_labels_of_an_empty_result() -> None:
    assert oracle_labels(np.full((2, 2), -1), np.zeros((2, 2), int)).tolist() == [[-1, -1]] * 2


def test_a_true_segment_takes_the_label_of_the_mask_that_fits_it_best() -> None:
    true_ids = np.array([[7, 7, 0], [9, 9, 9]])
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, :, :2] = True  # IoU with 7: 2 / 4
    masks[1, 0, 0] = True  # 1 / 2, but the first of equals counts
    masks[2, 1] = True
    labels = torch.tensor([5, 6, 8])
    assert labels_of_true_masks(true_ids, masks, labels).tolist() == [[5, 5, -1], [8, 8, 8]]
