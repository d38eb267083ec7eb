package service

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

type example struct {
	URL   string `env:"EXAMPLE_URL,required" help:"where"`
	Count int    `env:"EXAMPLE_COUNT" envDefault:"3" help:"how many"`
	Settings
}

func TestParseReadsEmbeddedSettingsAndDefaults(t *testing.T) {
	var got example
	if err := Parse(&got, []string{"EXAMPLE_URL=x", "EXAMPLE_COUNT=", "STALL_TIMEOUT=5s", "OTHER=1"}); err != nil {
		t.Fatal(err)
	}
	want := example{URL: "x", Count: 3, Settings: Settings{StallTimeout: 5 * time.Second, MinRate: 2048, MaxUploads: 128, ClientShare: 0.0625, DrainTimeout: time.Minute}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseReportsAllFaultsByVariable(t *testing.T) {
	err := Parse(&example{}, []string{"EXAMPLE_COUNT=many", "STALL_TIMEOUT=soon", "LOG_LEVEL=loud"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"EXAMPLE_URL", `EXAMPLE_COUNT is "many"`, `STALL_TIMEOUT is "soon"`, `LOG_LEVEL is "loud"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 {
		t.Errorf("%d faults; want 4", n)
	}
}

func TestSettingsOutOfRangeAreFaults(t *testing.T) {
	if err := relaxed.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Settings){
		"STALL_TIMEOUT":   func(s *Settings) { s.StallTimeout = -1 },
		"MIN_UPLOAD_RATE": func(s *Settings) { s.MinRate = 0 },
		"MAX_UPLOADS":     func(s *Settings) { s.MaxUploads = 0 },
		"CLIENT_SHARE":    func(s *Settings) { s.ClientShare = 1.1 },
		"SHARE":           func(s *Settings) { s.ClientShare = math.NaN() },
		"CLIENT":          func(s *Settings) { s.ClientShare = -0.1 },
		"DRAIN_DELAY":     func(s *Settings) { s.DrainDelay = -1 },
		"DRAIN_TIMEOUT":   func(s *Settings) { s.DrainTimeout = 0 },
	} {
		s := relaxed
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v; want %s", s, err, name)
		}
	}
}

func TestHelpShowsEachSetting(t *testing.T) {
	var b strings.Builder
	if err := Help(&b, "about it", &example{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"about it", "EXAMPLE_URL (required)", "EXAMPLE_COUNT=3", "how many", "LOG_LEVEL=info"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in:\n%s", want, b.String())
		}
	}
	want := []Setting{{Name: "EXAMPLE_URL", Required: true, Help: "where"}, {Name: "EXAMPLE_COUNT", Default: "3", Help: "how many"}}
	if diff := cmp.Diff(want, Describe(&example{})[:2], cmpopts.IgnoreUnexported(Setting{})); diff != "" {
		t.Error(diff)
	}
}

type size int64

func (size) String() string { return "rounded" }

func TestSharedHasTheTaggedSettingsExactly(t *testing.T) {
	type Inner struct {
		List []string `env:"LIST" shared:"true" help:"a list"`
		Size size     `env:"SIZE" shared:"true" help:"a size"`
		Own  string   `env:"OWN" help:"of one container"`
	}
	type settings struct {
		Inner
		On bool `env:"ON,required" shared:"true" help:"a switch"`
	}
	got := Shared(&settings{Inner{[]string{"b", "a", "b"}, 1<<20 + 1, "x"}, true})
	if diff := cmp.Diff(map[string]string{"LIST": "a,b", "SIZE": "1048577", "ON": "true"}, got); diff != "" {
		t.Error(diff)
	}
	for _, s := range Describe(&settings{}) {
		if _, shared := got[s.Name]; shared != strings.HasSuffix(s.Help, "; the same in both containers") {
			t.Errorf("the help of %s is %q", s.Name, s.Help)
		}
	}
}
