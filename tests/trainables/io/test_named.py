import hashlib

import pytest
from pydantic import ValidationError

from trainables.base import Frozen
from trainables.io.faults import branches
from trainables.io.named import FileName
from trainables.lookup import Lookup, with_absolute_paths


class Named(Frozen):
    file: FileName


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    return path


#: Of the bytes `one`.
DIGEST = hashlib.sha256(b"one").hexdigest()[:16]


def test_a_file_that_is_named_gets_the_digest_of_its_bytes(weights):
    named = Named(file=str(weights)).file
    assert named == f"{weights}#{DIGEST}"
    assert (named.path, named.digest, named.content) == (str(weights), DIGEST, DIGEST)
    assert named.checked_path() == str(weights)


def test_a_file_that_is_not_there_is_a_fault(weights):
    with pytest.raises(ValidationError, match=r"weights\.pt: there is no such file"):
        Named(file=str(weights.with_suffix(".pt")))
    with pytest.raises(ValidationError, match="there is no such file"):
        Named(file=str(weights.parent))


def test_a_file_with_its_digest_need_not_be_there_until_it_is_used(weights):
    named = Named(file=str(weights))
    weights.write_bytes(b"two")
    again = Named.model_validate_json(named.model_dump_json())
    assert again == named
    other = hashlib.sha256(b"two").hexdigest()[:16]
    with pytest.raises(ValueError, match=f"holds {other}, and it held {DIGEST} when the run was configured"):
        again.file.checked_path()
    weights.unlink()
    with pytest.raises(ValueError, match="is not there"):
        again.file.checked_path()


def test_what_reads_files_adds_the_digest_and_makes_the_path_absolute(weights):
    lookup = Lookup.beside(weights.parent / "sweep.yaml")
    kinds = branches(Named)
    settled = with_absolute_paths({"file": "weights.pth"}, kinds, lookup)
    assert settled == {"file": f"{weights}#{DIGEST}"}
    weights.write_bytes(b"two")
    assert with_absolute_paths(settled, kinds, lookup) == settled
