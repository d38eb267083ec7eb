package config

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type example struct {
	URL   string `env:"EXAMPLE_URL,required" help:"where"`
	Count int    `env:"EXAMPLE_COUNT" envDefault:"3" help:"how many"`
	Inner
}

type Inner struct {
	Timeout time.Duration `env:"TIMEOUT" envDefault:"30s" help:"how long"`
	Level   slog.Level    `env:"LOG_LEVEL" envDefault:"info" help:"how much"`
}

func TestParseReadsEmbeddedSettingsAndDefaults(t *testing.T) {
	var got example
	if err := Parse(&got, []string{"EXAMPLE_URL=x", "EXAMPLE_COUNT=", "TIMEOUT=5s", "OTHER=1"}); err != nil {
		t.Fatal(err)
	}
	want := example{URL: "x", Count: 3, Inner: Inner{Timeout: 5 * time.Second}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseNamesEachFaultyVariable(t *testing.T) {
	err := Parse(&example{}, []string{"EXAMPLE_COUNT=many", "TIMEOUT=soon", "LOG_LEVEL=loud"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"EXAMPLE_URL", `EXAMPLE_COUNT is "many"`, `TIMEOUT is "soon"`, `LOG_LEVEL is "loud"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 {
		t.Errorf("%d faults; want 4", n)
	}
}

type size int64

func (size) String() string { return "rounded" }

func TestSharedReturnsExactValues(t *testing.T) {
	type inner struct {
		List []string `env:"LIST" shared:"true" help:"a list"`
		Size size     `env:"SIZE" shared:"true" help:"a size"`
		Own  string   `env:"OWN" help:"of one container"`
	}
	type settings struct {
		Inner inner
		On    bool `env:"ON,required" shared:"true" help:"a switch"`
	}
	got := Shared(&settings{inner{[]string{"b", "a", "b"}, 1<<20 + 1, "x"}, true})
	if diff := cmp.Diff(map[string]string{"LIST": "a,b", "SIZE": "1048577", "ON": "true"}, got); diff != "" {
		t.Error(diff)
	}
}
