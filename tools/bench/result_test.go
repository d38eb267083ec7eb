package main

import "testing"

func TestVerdictFollowsTheBar(t *testing.T) {
	for _, c := range []struct {
		name    string
		row     result
		verdict string
		near    bool
	}{
		{"at least, met exactly", result{}.atLeast(0.8, 0.8, ""), met, false},
		{"at least, missed by 4 %", result{}.atLeast(0.768, 0.8, ""), missed, true},
		{"at least, missed by 6 %", result{}.atLeast(0.752, 0.8, ""), missed, false},
		{"at most, met", result{}.atMost(99, 100, ""), met, false},
		{"at most, missed by 4 %", result{}.atMost(104, 100, ""), missed, true},
		{"at most, missed by 6 %", result{}.atMost(106, 100, ""), missed, false},
		{"exactly, met", result{}.exactly(64, 64), met, false},
		{"exactly, missed by 2 %", result{}.exactly(63, 64), missed, false},
		{"no bar", result{Value: 1, Verdict: noBar}, noBar, false},
	} {
		if c.row.Verdict != c.verdict || c.row.near() != c.near {
			t.Errorf("%s: got %s, near %v; want %s, near %v", c.name, c.row.Verdict, c.row.near(), c.verdict, c.near)
		}
	}
}

func TestMediansPerRow(t *testing.T) {
	var runs [][]result
	for _, v := range [][2]float64{{0.79, 3}, {0.85, 1}, {0.81, 2}} {
		runs = append(runs, []result{result{}.atLeast(v[0], 0.8, ""), result{}.atMost(v[1], 1, "")})
	}
	got := medians(runs)
	if got[0].Value != 0.81 || got[0].Verdict != met || got[1].Value != 2 || got[1].Verdict != missed {
		t.Errorf("got %v, want 0.81 met and 2 missed", got)
	}
}
