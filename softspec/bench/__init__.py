"""What every `softspec bench` needs: samples of ways in cells, what is made of them, and the document they go to."""
