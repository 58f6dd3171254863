"""A training set without a service: the library on a folder.

    python examples/training_set.py

A bank decides about loans. What it knew of a customer changes with time, so a model must learn from what was known when each
loan was asked for, and not from what is known today.
"""

import tempfile

import pandas as pd

import featurestore

# What became known about customers, and when. Times need a zone; without one they are refused.
customers = pd.DataFrame(
    {
        "customer_id": ["ada", "ada", "ada", "bob"],
        "updated_at": pd.to_datetime(["2026-01-10", "2026-02-10", "2026-03-10", "2026-02-01"], utc=True),
        "income": [3000.0, 3200.0, 5100.0, 2100.0],
        "loans": [0, 1, 1, 2],
    }
)

# The spine: what the model will learn from, one row per loan, with the moment of the decision and the outcome.
loans = pd.DataFrame(
    {
        "customer_id": ["ada", "ada", "bob", "bob", "eve"],
        "asked_at": pd.to_datetime(
            ["2026-02-09T23:59Z", "2026-02-10T00:00Z", "2026-01-15T12:00Z", "2026-04-01T09:30Z", "2026-04-01T10:00Z"]
        ),
        "repaid": [1, 1, 0, 1, 0],
    }
)

with tempfile.TemporaryDirectory() as folder, featurestore.open(folder) as store:
    # Feature types are inferred from the dataframe; a mapping such as {"income": "Fractional"} says them explicitly.
    store.create_feature_group("customers", record_identifier="customer_id", event_time="updated_at", features=customers)
    report = store.ingest("customers", customers)
    print(f"{report.rows} records written, {report.online_newest} of them are the newest of their customer\n")

    training_set = store.create_training_set(
        loans,
        ["customers.income", "customers.loans"],  # or "customers.*"
        event_time="asked_at",
        event_times=True,  # adds the time from which each answer comes, to see that none is from the future
    )

    # Ada's first loan sees January's record, the second one sees what became known at that very second. Nothing was known
    # about Bob in January and never about Eve: no value, and no row is lost.
    print(training_set.to_pandas().to_string())

    # Of the same records, the online store answers the newest: what a model in production would ask for.
    print("\nonline now:", store.get_record("customers", "ada"))
