package web

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestMetricsPassPromlint(t *testing.T) {
	problems, err := testutil.GatherAndLint(newAPI(t).registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

func TestMetricsCountEachSignerCall(t *testing.T) {
	covered := map[string]bool{"ready": true} // the API does not call it
	for _, c := range []struct {
		op, method, path, body string
		stored                 int
	}{
		{"put", "PUT", "/cat/x", png, len(png)},
		{"put", "POST", "/cat/x", writes[1].body, len(png)},
		{"link", "GET", "/cat/x", "", 0},
		{"link", "GET", "/cat/x/picture", "", 0},
		{"delete", "DELETE", "/cat/x", "", 0},
		{"start_upload", "POST", "/cat/x/upload?size=3", "", 0},
		{"commit_upload", "POST", "/cat/x/upload/1-3-A/commit", "", 3}, // the fakeSigner's size
		{"about", "GET", "/about", "", 0},
	} {
		covered[strings.ReplaceAll(c.op, "_", "")] = true
		for outcome, err := range map[string]error{"ok": nil, "throttled": apierror.ErrThrottled, "internal": errors.New("no code")} {
			a := newAPI(t)
			a.signer.pictures["x"], a.signer.err = png, err
			a.send(c.method, c.path, strings.NewReader(c.body), "Content-Type", "multipart/form-data; boundary=b")
			want := map[string]string{fmt.Sprintf("signer_requests_total{operation=%q,outcome=%q}", c.op, outcome): "1"}
			if err == nil && c.stored > 0 {
				want["upload_bytes_total"] = strconv.Itoa(c.stored)
			}
			if diff := cmp.Diff(want, counters(t, a.registry, "upload_bytes_total", "signer_requests_total")); diff != "" {
				t.Errorf("%s %s, %s: counters (-want +got):\n%s", c.method, c.path, outcome, diff)
			}
		}
	}
	for method := range reflect.TypeFor[signerapi.Signer]().Methods() {
		if !covered[strings.ToLower(method.Name)] {
			t.Errorf("no row of this test calls %s", method.Name)
		}
	}
}

// counters returns the values above zero of the frontend's counters with these names, by name and labels.
func counters(t *testing.T, reg *prometheus.Registry, names ...string) map[string]string {
	t.Helper()
	for i := range names {
		names[i] = "cats_frontend_" + names[i]
	}
	text, err := testutil.GatherAndFormat(reg, expfmt.TypeTextPlain, names...)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^cats_frontend_(\S+) ([1-9]\S*)$`).FindAllStringSubmatch(string(text), -1) {
		values[m[1]] = m[2]
	}
	return values
}
