"""Look at a set of shards: counts, histograms and a contact sheet on one HTML page.

python data_prep/stats.py root=data/mine
python data_prep/stats.py input=raw pictures=100
"""

from imagen.cli import main
from imagen.prep.stats import stats

if __name__ == "__main__":
    main("data_prep/stats")(stats)()
