package httpserver

import (
	"math"
	"strings"
	"testing"
)

func TestValidateRejectsSettingsOutOfRange(t *testing.T) {
	if err := relaxed.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Settings){
		"STALL_TIMEOUT":   func(s *Settings) { s.StallTimeout = -1 },
		"MIN_UPLOAD_RATE": func(s *Settings) { s.MinUploadRate = 0 },
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
