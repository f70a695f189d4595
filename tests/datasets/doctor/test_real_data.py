"""Findings in real datasets compared with an independent inspection."""

import pytest

from ddetr.datasets.doctor import examine


@pytest.fixture(scope='module')
def bccd(photographs):
    return {fault.name: fault for fault in examine(photographs / 'bccd').faults}


def found_in(fault):
    return sorted(path.stem[-5:] for path in fault.paths)


def test_blood_cells(bccd):
    assert found_in(bccd['box without area']) == ['00338', '00343']
    assert found_in(bccd['duplicate box']) == [
        '00020',
        '00100',
        '00104',
        '00251',
        '00284',
        '00331',
        '00403',
    ]
    assert found_in(bccd['nearly coinciding boxes of one class']) == ['00013']
    # a platelet that is called a white cell, and two white cells that are called platelets
    assert found_in(bccd['unusual size for its class']) == ['00113', '00133', '00135']
    assert found_in(bccd['near-duplicate image in another split']) == ['00037', '00038']
    assert {'00152', '00250', '00268', '00303'} < set(
        found_in(bccd['image with fewer boxes of a class than usual'])
    )
    assert bccd['class imbalance'].count == 2
    assert len(bccd) == 7


def test_coco_has_no_errors_and_no_false_alarms(photographs):
    report = examine(photographs / 'coco')
    assert report.of('error') == []
    assert {fault.name: fault.count for fault in report.of('warning')} == {
        'box smaller than two pixels': 3,
        'class in one split only': 8,
    }
    notes = {fault.name: fault.count for fault in report.of('note')}
    assert notes['image without boxes'] == 2
    assert notes['grey, transparent, palette or CMYK image'] == 2
    assert 'near-duplicate image' not in notes
