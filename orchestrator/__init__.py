"""Asks a question of many training runs and answers it: space, plan, lanes, journal, statistics, report."""
