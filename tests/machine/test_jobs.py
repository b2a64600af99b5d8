"""Which jobs are a run's own."""

from concurrent.futures import ThreadPoolExecutor

from hpc import jobs


def test_jobs_read_back_in_order_whoever_records_them(tmp_path):
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda i: jobs.record(tmp_path, str(i), "worker"), range(200)))
    assert sorted(int(entry.id) for entry in jobs.read(tmp_path)) == list(range(200))
    jobs.record(tmp_path, "7", "stage:respond")
    assert jobs.read(tmp_path)[-1].role == "stage:respond"


def test_a_torn_line_spoils_no_other(tmp_path):
    jobs.record(tmp_path, "1", "train")
    with (tmp_path / jobs.FILE).open("a") as file:
        file.write('{"id": "2", "ro')
    assert [entry.id for entry in jobs.read(tmp_path)] == ["1"]
    jobs.record(tmp_path, "3", "driver")
    assert [entry.id for entry in jobs.read(tmp_path)] == ["1", "3"]


def test_a_folder_without_jobs_has_none(tmp_path):
    assert jobs.read(tmp_path) == []


def test_names_tell_runs_of_one_name_apart(tmp_path):
    here, there = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert jobs.job_name(here, "train") != jobs.job_name(there, "train")
    assert jobs.job_name(here, "train").startswith("gfdt-run-")
    assert jobs.job_name(here, "train").endswith("-train")


def test_a_name_is_one_word_whatever_the_folder(tmp_path):
    assert jobs.job_name(tmp_path / "a b$(x)\n'", "stage:a").split("-")[1:2] == ["a_b__x___"]
