package main

import (
	"strings"
	"testing"
)

func TestDoctorUsesTheValidSettings(t *testing.T) {
	for _, c := range []struct {
		environ               []string
		faults                []string // the variable of each
		noIdentity, noStorage bool
		linkBase              string
	}{
		{good, nil, false, false, ""},
		{append([]string{"LINK_BASE_URL=https://cdn.example.com/"}, good...), nil, false, false, "https://cdn.example.com"},
		{nil, []string{"AZURE_STORAGE_ACCOUNT_URL", "AZURE_CLIENT_ID"}, true, true, ""},
		{good[:4], []string{"ANONYMOUS_ACCESS"}, false, false, ""},
		{[]string{good[0], good[4]}, []string{"AZURE_CLIENT_ID"}, true, false, ""},
		{append([]string{"AZURE_CLIENT_ID=\"\""}, good...), nil, false, false, ""},
		{good[1:], []string{"AZURE_STORAGE_ACCOUNT_URL"}, false, true, ""},
		{append([]string{"LINK_TTL=soon", "LINK_BASE_URL=cdn"}, good...), []string{"LINK_TTL"}, false, false, ""},
		{append([]string{"LOG_LEVEL=loud", "LISTEN_ADDRESS=:1", "STORAGE_CONTAINER=A"}, good...), []string{"LOG_LEVEL"}, false, true, ""},
	} {
		got := doctorOptions(c.environ)
		if (got.Identity.Validate() != nil) != c.noIdentity || (got.Storage.Validate() != nil) != c.noStorage || got.Storage.LinkBaseURL != c.linkBase || (got.Faults == nil) != (c.faults == nil) {
			t.Errorf("%q: %+v", c.environ, got)
			continue
		}
		var lines []string
		if got.Faults != nil {
			lines = strings.Split(got.Faults.Error(), "\n")
		}
		if len(lines) != len(c.faults) {
			t.Errorf("%q: %q; want %q", c.environ, lines, c.faults)
			continue
		}
		for i, variable := range c.faults {
			if !strings.Contains(lines[i], variable) {
				t.Errorf("%q: fault %d is %s; want %s", c.environ, i, lines[i], variable)
			}
		}
	}
}

func TestDoctorReportsFaultsThatStopTheSigner(t *testing.T) {
	for _, environ := range [][]string{good, nil, {good[0], "CREDENTIAL=default"}, {good[0], "CREDENTIAL=default", "ANONYMOUS_ACCESS=true"}, append([]string{"EXISTENCE_CACHE_TTL=-1s"}, good...)} {
		_, err := parse(environ)
		if faults := doctorOptions(environ).Faults; (err == nil) != (faults == nil) {
			t.Errorf("%q: the signer says %v, the doctor %v", environ, err, faults)
		}
	}
}
