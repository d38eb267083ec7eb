package access

import (
	"os"
	"strings"
	"testing"
)

// table returns the fields of the lines of a file of testdata that are no comments.
func table(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	content, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(content)), "\n") {
		if fields := strings.Split(line, " | "); len(fields) == 3 {
			for i := range fields {
				fields[i] = strings.TrimPrefix(fields[i], "-")
			}
			rows = append(rows, fields)
		}
	}
	return rows[1:] // without the names of the columns
}

func TestValidateNamesTheFaultySetting(t *testing.T) {
	for _, row := range table(t, "policies.txt") {
		err := Policy{Issuer: row[0], DiscoveryURL: row[1], ReadAccess: Own}.Validate()
		if want := row[2]; want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q, %q: %v; want %q", row[0], row[1], err, want)
		}
	}
}

func TestConfigurationURLIsWellKnown(t *testing.T) {
	for _, row := range table(t, "configurations.txt") {
		if got := (Policy{Issuer: row[0], DiscoveryURL: row[1]}).ConfigurationURL(); got != row[2] {
			t.Errorf("%q, %q: %s; want %s", row[0], row[1], got, row[2])
		}
	}
}
