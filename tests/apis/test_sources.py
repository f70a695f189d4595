"""Input sources of the commands, and the names of their results."""

import pytest

from ddetr.apis import list_images
from ddetr.apis.sources import find_sources
from ddetr.utils import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ('a/cat.jpg', 'b/cat.jpg', 'b/dog.PNG', 'b/notes.txt', 'b/clip.mp4', 'b/c/[1].jpg'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_files_folders_patterns_and_videos(folder):
    sources = find_sources([folder / 'a/cat.jpg', folder / 'b', f'{folder}/**/*.jpg'])
    found = {source.place.removeprefix(f'{folder}/'): (source.name, source.is_video) for source in sources}
    assert found == {
        'a/cat.jpg': ('a/cat.jpg', False),
        'b/cat.jpg': ('b/cat.jpg', False),
        'b/clip.mp4': ('clip.mp4', True),
        'b/dog.PNG': ('dog.PNG', False),
        'b/c/[1].jpg': ('[1].jpg', False),
    }
    assert len(sources) == 5  # each once


def test_a_file_whose_name_looks_like_a_pattern(folder):
    (source,) = find_sources([folder / 'b/c/[1].jpg'])
    assert source.place == str(folder / 'b/c/[1].jpg')


def test_cameras_and_urls(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / '7').touch()
    places = ['0', '7', 'rtsp://host/live', 'https://host/a/cat.jpg?size=1', 'https://host/a/cat.jpg?size=2']
    sources = find_sources(places)
    assert [source.place for source in sources] == [0, '7', *places[2:]]
    assert [source.is_video for source in sources] == [True, False, True, False, False]
    assert sources[0].name == 'camera0'
    assert len({source.name for source in sources}) == 5


def test_missing_sources_raise(folder):
    for entry, says in (
        (f'{folder}/none.jpg', 'none.jpg does not exist'),
        (f'{folder}/*.webp', r'\*.webp matches no image or video'),
        (folder, r"contains no images .*To include subfolders, use '.*/\*\*'"),
    ):
        with pytest.raises(InputError, match=says):
            find_sources([entry])
    with pytest.raises(InputError, match='no input'):
        find_sources([])


def test_list_images(folder):
    assert list_images(folder / 'b') == [folder / 'b/cat.jpg', folder / 'b/dog.PNG']
    assert list_images(folder / 'a/cat.jpg') == [folder / 'a/cat.jpg']
    with pytest.raises(InputError, match='does not exist'):
        list_images(folder / 'nothing')
    with pytest.raises(InputError, match='contains no images'):
        list_images(folder)
