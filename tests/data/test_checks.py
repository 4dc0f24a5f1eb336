import pytest
from star_tables import COLUMNS, old, star

from hetmodels.data.checks import problems
from hetmodels.data.metadata import read_metadata


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"rlnImageName": ["0@a", "1@a", "-2@a", "3@a"]}, "error", "2 rows name image 0 or less"),
        ({"rlnAngleRot": "1", "rlnAngleTilt": "2", "rlnAnglePsi": "3"}, "error", "the same orientation"),
        ({"rlnDefocusU": "0", "rlnDefocusV": "0"}, "error", "all defoci are zero"),
        ({"rlnAmplitudeContrast": "7"}, "error", "amplitude contrast must lie in 0 … 1"),
        ({"rlnVoltage": "300000"}, "warning", "the unit should be kV"),
        ({"rlnDefocusU": "1.2", "rlnDefocusV": "1.1"}, "warning", "the unit should be Å"),
        ({"rlnDefocusU": "-19000"}, "warning", "overfocus"),
        ({"rlnOriginXAngst": "900"}, "warning", "shifted by more than half a box"),
        ({"rlnRandomSubset": "1"}, "warning", "all particles are in half set 1"),
        ({"drop": ("_rlnAngleRot",)}, "warning", "no poses: the table lacks _rlnAngleRot"),
        ({"drop": ("_rlnDefocusU",)}, "error", "no CTF: the table lacks _rlnDefocusU"),
        ({"rlnImagePixelSize": "0"}, "error", "pixel sizes must be positive"),
        ({"rlnImageName": "1@a"}, "warning", "several poses"),
    ],
)
def test_problems(tmp_path, changes, severity, words):
    found = problems(read_metadata(star(tmp_path, **changes)))
    assert [problem.severity for problem in found if words in problem.text] == [severity]
    assert [p.severity for p in found] == sorted(p.severity for p in found)


def test_duplicates_are_counted(tmp_path):
    same = {label[1:]: [values[0]] * 3 + [values[3]] for label, values in COLUMNS.items()}
    found = [p.text for p in problems(read_metadata(star(tmp_path, **same)))]
    assert any("2 rows repeat an image with the same pose" in text for text in found)
    assert not any("several poses" in text for text in found)


def test_a_sound_table_has_only_the_problem_of_being_small(tmp_path):
    assert [p.text.split(" have ")[0] for p in problems(read_metadata(star(tmp_path)))] == ["2 of 2 optics groups"]
    assert problems(read_metadata(old(tmp_path))) == []
