from typing import get_args

import pytest

from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.data.sources import DataSettings, load_dataset


@pytest.mark.parametrize("name", get_args(DataSettings.model_fields["dataset"].annotation))
def test_every_data_set_has_a_shape(name):
    assert min(shape_of(DataSettings(dataset=name))) > 0


@pytest.mark.parametrize("settings", [{"dataset": "digits"}, {"dataset": "synthetic", "synthetic": {"image_size": 12}}])
def test_the_shape_is_that_of_the_images(settings):
    data = DataSettings.model_validate(settings)
    loaded = load_dataset(data, seed=0)
    channels, _, size = loaded.train.images.shape[1:]
    assert shape_of(data) == Shape(channels, size, loaded.classes)
