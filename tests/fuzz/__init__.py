"""Whatever comes from outside, damaged at random: nothing crashes, hangs, or is made up.

Each file beside this one takes seeds that are right, damages them, and compares what we make of
them with what a slow and simple reader does. In the suite that is 50 inputs each and 1,000 dumps,
a few seconds altogether. As many as you like, each time others:

    bin/test tests/fuzz --examples 100000
    python -m tests.fuzz.dump --inputs 1000000      dumps
    python -m tests.fuzz.store --inputs 10000       stores

    dump.py              XML and gzip             verdict and hashes against lxml
    store.py             Git repositories         refused, or records alone come out
    test_hashfile.py     files of hashes          the pairs, or the line that is wrong
    test_api_answers.py  HTTP, JSON of records    no Answer claims more than was said
    test_quota.py        headers of the quota     never over the limit, never stopped for ever
    test_json.py         JSON                     kept with every digit, or refused
    test_listing.py      index, CHECKSUM files    damage to a line costs that line
    test_settings.py     .env                     usable, or one line says what is wrong
"""
