"""`cache_mode`: each file is read once per machine, whoever asks for it, and nothing is left behind."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader

from ddetr.datasets import CocoDataset, LoadImageFromFile, image_cache
from ddetr.datasets.image_cache import ImageCache
from ddetr.utils import InputError
from ddetr.utils.progress import track

FORK, SPAWN = (multiprocessing.get_context(method) for method in ('fork', 'spawn'))


def refuse():
    raise AssertionError('read again')


def put(cache, contents):
    for index, content in contents.items():
        assert cache.get(index, lambda content=content: content) == content


def holds(cache, contents):
    return all(cache.get(index, refuse) == content for index, content in contents.items())


def in_process(context, target, *args):
    process = context.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def test_bytes_come_back_as_they_were_read():
    cache = ImageCache(5, 1.0, 'train.json')
    contents = {3: b'abc', 0: b'', 4: os.urandom(100_000)}
    put(cache, contents)
    assert holds(cache, contents)
    assert cache.get(1, lambda: b'now') == b'now'
    assert cache.occupied()[0] == 4
    assert 100_000 < cache.occupied()[1] < 120_000


@pytest.mark.parametrize('context', [FORK, SPAWN], ids=['fork', 'spawn'])
def test_workers_share_what_any_of_them_has_read(context):
    cache = ImageCache(3, 1.0, 'train.json')
    put(cache, {0: b'parent'})
    assert in_process(context, share, cache) == 0
    assert holds(cache, {0: b'parent', 1: b'worker'})


def share(cache):
    assert holds(cache, {0: b'parent'})
    put(cache, {1: b'worker'})


def fill(cache, first):
    for index in range(first, cache.num_images, 3):
        put(cache, {index: f'{index} '.encode() * 500})


class Hesitating(ImageCache):
    """Lets other processes run between finding out where to write and taking that place."""

    @property
    def limit(self):
        os.sched_yield()
        return 2**30

    @limit.setter
    def limit(self, value):
        pass


def test_processes_that_write_at_once_do_not_overwrite_each_other():
    cache = Hesitating(600, 1.0, 'train.json')
    processes = [FORK.Process(target=fill, args=(cache, first)) for first in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert holds(cache, {index: f'{index} '.encode() * 500 for index in range(600)})


def test_files_beyond_the_limit_are_read_from_disk(monkeypatch):
    warnings = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', warnings.append)
    cache = ImageCache(5, 250 / 2**30, 'train.json')
    contents = {index: bytes([index]) * 100 for index in range(5)}
    put(cache, contents)
    assert holds(cache, {index: contents[index] for index in (0, 1)})
    for index in (2, 3, 4):
        with pytest.raises(AssertionError, match='read again'):
            cache.get(index, refuse)
    assert len(warnings) == 1
    assert '2 of 5 images' in warnings[0]


def die_while_writing(cache):
    os.pwrite = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    put(cache, {0: b'never written'})


def test_a_killed_worker_neither_blocks_others_nor_leaves_half_an_image():
    cache = ImageCache(2, 1.0, 'train.json')
    assert in_process(FORK, die_while_writing, cache) == -signal.SIGKILL
    put(cache, {0: b'whole', 1: b'other'})
    assert holds(cache, {0: b'whole', 1: b'other'})


def open_caches():
    """Where the file descriptors of all caches of this process lead to."""
    targets = []
    for file in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            targets.append(os.readlink(f'/proc/self/fd/{file}'))
    return [target for target in targets if 'ddetr_images' in target]


def test_memory_is_anonymous_and_freed_with_its_last_user():
    before = len(open_caches())
    cache = ImageCache(1, 1.0, 'train.json')
    twin = pickle.loads(pickle.dumps(cache))
    assert os.fstat(cache._file).st_nlink == os.fstat(twin._file).st_nlink == 0
    # no folder lists it, /dev/shm included
    assert open_caches()[before:] == ['/memfd:ddetr_images (deleted)'] * 4  # mmap has a second one each
    del cache, twin
    assert len(open_caches()) == before


def test_invalid_limits_raise():
    with pytest.raises(InputError, match='cache_limit_gib=0 is not positive'):
        ImageCache(1, 0, 'train.json')
    with pytest.raises(InputError, match='cache_mode=\'yes\': set it to True, False or "ahead"'):
        CocoDataset(cache_mode='yes')


class CountingBackend(LocalBackend):
    """Appends the name of each file that is read to `log`."""

    def __init__(self, log):
        self.log = Path(log)

    def get(self, filepath):
        with self.log.open('a') as file:
            file.write(f'{Path(filepath).name}\n')
        return super().get(filepath)


register_backend('counting', CountingBackend, force=True)


def counted(coco, log, **changes):
    load = {'type': LoadImageFromFile, 'backend_args': {'backend': 'counting', 'log': str(log)}}
    return CocoDataset(**coco.config(**{'cache_mode': True, 'pipeline': [load], **changes}))


def names_read(log):
    return sorted(log.read_text().split()) if log.exists() else []


def test_a_dataset_reads_each_file_once_for_all_workers_and_epochs(tiny_coco, tmp_path):
    tiny_coco.write()
    plain = CocoDataset(**tiny_coco.config(pipeline=[{'type': 'LoadImageFromFile'}]))
    log = tmp_path / 'log'
    dataset = counted(tiny_coco, log)
    for _ in range(3):
        loader = DataLoader(dataset, batch_size=None, num_workers=2)
        images = [torch.as_tensor(item['img']) for item in loader]
        expected = [torch.as_tensor(plain[i]['img']) for i in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
        assert names_read(log) == ['a.jpg', 'b.jpg', 'c.jpg']


def test_filtered_sets_and_subsets_see_their_own_images(tiny_coco, tmp_path):
    tiny_coco.write()
    filtered = counted(tiny_coco, tmp_path / 'log', filter_cfg={'filter_empty_gt': True})
    assert [filtered[i]['img'].shape for i in range(2)] == [(80, 100, 3), (90, 60, 3)]
    whole = counted(tiny_coco, tmp_path / 'log')
    assert whole[0]['img'].shape == (80, 100, 3)
    last, copied = whole.get_subset([2]), copy.deepcopy(whole)
    assert last[0]['img'].shape == copied[2]['img'].shape == (90, 60, 3)


def join(rank, folder):
    meet = {'init_method': f'file://{folder}/meet', 'rank': rank, 'world_size': 2}
    torch.distributed.init_process_group('gloo', **meet)


def read_as_rank(rank, folder, coco):
    join(rank, folder)
    dataset = counted(coco, folder / 'log')
    for turn in range(2):  # rank 0 reads images 0 and 2, rank 1 image 1; then both read all
        for i in range(3) if turn else range(rank, 3, 2):
            assert dataset[i]['img'].shape == ((80, 100, 3), (90, 60, 3))[i == 2]
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ranks_of_a_machine_share_one_cache(tiny_coco, tmp_path):
    tiny_coco.write()
    torch.multiprocessing.spawn(read_as_rank, (tmp_path, tiny_coco), nprocs=2)
    assert names_read(tmp_path / 'log') == ['a.jpg', 'b.jpg', 'c.jpg']


def fill_as_rank(rank, folder, coco):
    join(rank, folder)
    counted(coco, folder / f'log{rank}', cache_mode='ahead')
    torch.distributed.destroy_process_group()


def test_ranks_of_a_machine_share_the_reading_ahead(tiny_coco, tmp_path):
    tiny_coco.write()
    torch.multiprocessing.spawn(fill_as_rank, (tmp_path, tiny_coco), nprocs=2)
    assert names_read(tmp_path / 'log0') == ['a.jpg', 'c.jpg']
    assert names_read(tmp_path / 'log1') == ['b.jpg']


def test_reading_ahead_waits_for_many_files_at_once_and_shows_progress(capsys, monkeypatch):
    monkeypatch.setattr(image_cache, 'track', partial(track, every_s=0.1))
    cache, waiting, most = ImageCache(64, 1.0, 'train.json'), [], []

    def read(i):
        waiting.append(i)
        most.append(len(waiting))
        time.sleep(0.05)
        waiting.remove(i)
        return b'%d' % i

    cache.fill(64, lambda i: cache.get(i, partial(read, i)))
    assert holds(cache, {i: b'%d' % i for i in range(64)})
    assert max(most) > 8
    assert re.search(r'train.json: images read ahead: \d+/64, \d s left', capsys.readouterr().err)


def test_reading_ahead_stops_when_the_memory_is_full():
    cache, read = ImageCache(1000, 1e-6, 'train.json'), []  # a thousand bytes
    cache.fill(1000, lambda i: cache.get(i, lambda: read.append(i) or bytes(100)))
    assert 9 <= len(read) < 100
    assert cache.occupied()[0] == 9


def test_unreadable_image_raises_only_when_it_is_used(tiny_coco, tmp_path, monkeypatch):
    tiny_coco.write()
    (tmp_path / 'images' / 'a.jpg').unlink()
    monkeypatch.setattr(CocoDataset, '_check_images_exist', lambda *_: None)
    dataset = counted(tiny_coco, tmp_path / 'log', cache_mode='ahead')
    assert dataset[1]['img'].shape == (80, 100, 3)
    with pytest.raises(InputError, match=r'a\.jpg does not exist'):
        dataset[0]


def test_ranks_of_two_machines_do_not_share_a_cache(monkeypatch):
    monkeypatch.setattr(image_cache, 'get_rank', lambda: 1)
    monkeypatch.setattr(image_cache, 'all_gather_object', lambda mine: [('elsewhere', 1, 99), mine])
    cache = ImageCache(2, 1.0, 'train.json')
    put(cache, {1: b'here'})
    assert holds(cache, {1: b'here'})
