package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// changing are the requests that change the stored picture.
var changing = []struct{ method, path, contentType, body string }{
	{"PUT", "/cat/x", "image/png", png},
	{"POST", "/cat/x", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=file; filename=a.png\r\n\r\n" + png + "\r\n--b--\r\n"},
	{"DELETE", "/cat/x", "", ""},
	{"POST", "/cat/x/upload/1-3-A/commit", "", ""},
}

func TestProblemsHaveTheOutcomeOfTheWrite(t *testing.T) {
	private := &apierror.Error{Code: "private", Detail: "hunter2"}
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
		want   string // the raw JSON; "" for none
	}{
		"refused":                             {apierror.ErrConflict, 409, "conflict", ""},
		"failed":                              {apierror.ErrStorageUnavailable, 503, "storage_unavailable", ""},
		"without a case":                      {errors.New("hunter2"), 500, "internal", ""},
		"lost by storage":                     {apierror.ErrStorageUnavailable.WithUnknownOutcome(apierror.MayBeStored), 503, "storage_unavailable", `"unknown"`},
		"lost by the signer":                  {apierror.ErrSignerUnavailable.WithUnknownOutcome(apierror.MayBeDeleted), 503, "signer_unavailable", `"unknown"`},
		"refused when repeated":               {apierror.ErrPreconditionFailed.WithUnknownOutcome(apierror.MayBeStored), 412, "precondition_failed", `"unknown"`},
		"lost, wrapped":                       {fmt.Errorf("storing: %w", apierror.ErrThrottled.WithUnknownOutcome(apierror.MayBeStored)), 503, "throttled", `"unknown"`},
		"lost, without a case":                {apierror.ErrInternal.Wrap(errors.New("hunter2")).WithUnknownOutcome(apierror.MayBeStored), 500, "internal", `"unknown"`},
		"a code without a status":             {private, 500, "internal", ""},
		"a code without a status, lost":       {private.WithUnknownOutcome(apierror.MayBeStored), 500, "internal", `"unknown"`},
		"stored damaged":                      {apierror.ErrDamaged, 502, "damaged", `"stored"`},
		"stored damaged, with another detail": {apierror.ErrDamaged.WithDetail("x"), 502, "damaged", `"stored"`},
	} {
		for _, r := range changing {
			t.Run(r.method+" "+r.path+" "+name, func(t *testing.T) {
				h, m, _ := newWeb(t)
				m.fail = c.err
				rec := sendWith(t, h, r.method, r.path, strings.NewReader(r.body), "Content-Type", r.contentType)
				wantProblem(t, rec, c.status, c.code)
				var said map[string]json.RawMessage
				if err := json.Unmarshal(rec.Body.Bytes(), &said); err != nil || string(said["outcome"]) != c.want {
					t.Errorf("outcome %s, %v; want %s", said["outcome"], err, c.want)
				}
			})
		}
	}
}

// A request that does not reach the signer changes nothing.
func TestRefusalsOfTheFrontendHaveNoOutcome(t *testing.T) {
	h, m, _ := newWeb(t)
	m.fail = apierror.ErrSignerUnavailable.WithUnknownOutcome(apierror.MayBeStored)
	for _, c := range []struct {
		method, path, body string
		header             []string
	}{
		{"PUT", "/cat/x.", png, nil},
		{"PUT", "/cat/x", "text", nil},
		{"PUT", "/cat/x", png, []string{"If-Match", "x"}},
		{"PUT", "/cat/x", png, []string{"Sec-Fetch-Site", "cross-site"}},
		{"POST", "/cat/x", png, nil},
		{"DELETE", "/cat/x", "", []string{"If-Match", "x"}},
		{"POST", "/cat/x/upload/1-3-A/commit?content_md5=x", "", nil},
		{"PATCH", "/cat/x", "", nil},
	} {
		rec := sendWith(t, h, c.method, c.path, strings.NewReader(c.body), c.header...)
		var said map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &said); err != nil || rec.Code < http.StatusBadRequest || said["outcome"] != nil {
			t.Errorf("%s %s %v: %d %s", c.method, c.path, c.header, rec.Code, rec.Body)
		}
	}
}
