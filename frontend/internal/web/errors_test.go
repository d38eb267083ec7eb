package web

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// declared returns the errors of the public API by code.
func declared() map[string]*apierror.Error {
	errs := map[string]*apierror.Error{}
	for _, e := range slices.AppendSeq(slices.Clone(ownErrors), apierror.All()) {
		errs[e.Code] = e
	}
	return errs
}

func TestErrorsBecomeProblemDocuments(t *testing.T) {
	secret := errors.New("hunter2")
	private := &apierror.Error{Code: "private", Detail: "hunter2"} // has no status
	lost := apierror.ErrInternal.WithUnknownOutcome("")
	type row struct {
		err  error
		want *apierror.Error
	}
	rows := []row{
		{secret, apierror.ErrInternal},
		{private, apierror.ErrInternal},
		{private.WithUnknownOutcome(apierror.MayBeStored), lost},
		{apierror.ErrInternal.Wrap(secret).WithUnknownOutcome(apierror.MayBeDeleted), apierror.ErrInternal.WithUnknownOutcome(apierror.MayBeDeleted)},
		{apierror.ErrDamaged.WithDetail("damaged"), apierror.ErrDamaged.WithDetail("damaged")},
	}
	for e := range apierror.All() {
		rows = append(rows, row{fmt.Errorf("storing: %w", e.Wrap(secret)), e}, row{e.WithUnknownOutcome(apierror.MayBeStored), e.WithUnknownOutcome(apierror.MayBeStored)})
	}
	a := newAPI(t)
	for _, c := range rows {
		a.signer.err = c.err
		for _, r := range writes {
			rec := a.send(r.method, r.path, strings.NewReader(r.body), "Content-Type", r.contentType)
			p := wantProblem(t, rec, c.want.Status, c.want.Code)
			retryAfter := ""
			if c.want.RetryAfter > 0 {
				retryAfter = strconv.Itoa(int(c.want.RetryAfter.Seconds()))
			}
			if p.Detail != c.want.Detail || p.Outcome != c.want.Outcome || rec.Header().Get("Retry-After") != retryAfter || strings.Contains(rec.Body.String(), "hunter2") {
				t.Errorf("%s %s, %v: %v %s", r.method, r.path, c.err, rec.Header(), rec.Body)
			}
		}
	}
}
