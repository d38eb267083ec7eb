package web

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestMetricsCountEachSignerCall(t *testing.T) {
	form := "--b\r\nContent-Disposition: form-data; name=file; filename=a.png\r\n\r\n" + png + "\r\n--b--\r\n"
	covered := map[string]bool{"ready": true} // a probe, which the API does not call
	for _, c := range []struct {
		op, method, path, body string
		stored                 float64
	}{
		{"put", "PUT", "/cat/x", png, float64(len(png))},
		{"put", "POST", "/cat/x", form, float64(len(png))},
		{"link", "GET", "/cat/x", "", 0},
		{"link", "GET", "/cat/x/picture", "", 0},
		{"delete", "DELETE", "/cat/x", "", 0},
		{"start_upload", "POST", "/cat/x/upload?size=3", "", 0},
		{"commit_upload", "POST", "/cat/x/upload/1-3-A/commit", "", 3}, // as the signer of these tests says
		{"about", "GET", "/about", "", 0},
	} {
		covered[strings.ReplaceAll(c.op, "_", "")] = true
		for outcome, fail := range map[string]error{"ok": nil, "throttled": apierror.ErrThrottled, "internal": errors.New("without a code")} {
			h, m, reg := newWeb(t)
			m.cats["x"], m.fail = png, fail
			rec := send(t, h, c.method, c.path, "multipart/form-data; boundary=b", strings.NewReader(c.body))
			want := map[string]float64{"signer_requests_total " + c.op + " " + outcome: 1}
			if fail == nil && c.stored > 0 {
				want["upload_bytes_total"] = c.stored
			}
			if diff := cmp.Diff(want, counters(t, reg)); diff != "" {
				t.Errorf("%s %s, %s: %d; counters (-want +got):\n%s", c.method, c.path, outcome, rec.Code, diff)
			}
		}
	}
	for method := range reflect.TypeFor[signerapi.Signer]().Methods() {
		if !covered[strings.ToLower(method.Name)] {
			t.Errorf("no row of this test has the signer called by %s", method.Name)
		}
	}
}

// counters returns the values above zero of the counters of uploads and of the signer's calls, by name and labels.
func counters(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		name := strings.TrimPrefix(family.GetName(), "cats_frontend_")
		if name != "upload_bytes_total" && name != "signer_requests_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			key := name
			for _, label := range m.GetLabel() {
				key += " " + label.GetValue()
			}
			if v := m.GetCounter().GetValue(); v > 0 {
				got[key] = v
			}
		}
	}
	return got
}
