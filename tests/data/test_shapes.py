import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.data.sources import DataSettings, load_dataset, own_datasets

NAMES = set(own_datasets())


@pytest.mark.parametrize("name", sorted(NAMES - {"folder", "arrays", "parquet", "shakespeare", "tinystories"}))
def test_every_data_set_has_a_shape(name):
    sample, classes = shape_of(DataSettings(dataset=name))
    assert len(sample) == 3
    assert min(*sample, classes) > 0


def test_a_folders_classes_are_its_folders(tmp_path):
    for name in ("ants", "bees", "cats"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
    settings = {"dataset": "folder", "root": str(tmp_path), "folder": {"image_size": 48, "channels": 3}}
    assert shape_of(DataSettings.model_validate(settings)) == Shape((3, 48, 48), 3)
    with pytest.raises(UserError, match="a data folder is missing"):
        shape_of(DataSettings.model_validate({**settings, "root": "nowhere"}))


@pytest.mark.parametrize("settings", [{"dataset": "digits"}, {"dataset": "synthetic", "synthetic": {"image_size": 12}}])
def test_the_shape_is_that_of_the_images(settings):
    data = DataSettings.model_validate(settings)
    loaded = load_dataset(data, seed=0)
    assert shape_of(data) == Shape(loaded.shape, loaded.classes)
