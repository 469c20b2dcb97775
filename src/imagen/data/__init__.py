"""Reading captioned pictures: the folder contract, the loader over it, and pictures made in memory."""
