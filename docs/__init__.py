"""The pages for people. Three of them are written from the code: ``python -m docs`` writes them anew."""
