package doctor

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"cats.example/signer/internal/identity"
)

// claims of a federated token that matter for its exchange.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	NotBefore *float64 `json:"nbf"` // in Unix time, as Expires
	Expires   *float64 `json:"exp"`
}

// audience is one or several.
type audience []string

// UnmarshalJSON implements [json.Unmarshaler].
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// readClaims reads the claims of a token without verifying it: that is for Entra
// ID. The error holds nothing of the token.
func readClaims(token string) (claims, error) {
	var c claims
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return c, errors.New("it does not hold a token of three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return c, errors.New("the claims of the token cannot be read")
	}
	return c, nil
}

// tokenFile shows the claims of the federated token, for comparison with the
// identity's federated credential, and never the token.
func (v *visit) tokenFile(now time.Time) (noToken string) {
	const check, failed = "token file", "there is no federated token"
	path := v.Identity.TokenFile
	switch {
	case v.Identity.Kind == identity.Default:
		v.line(skip, check, "not tried, because CREDENTIAL=default looks for a login of its own")
		return ""
	case path == "":
		v.line(skip, check, "not tried, because AZURE_FEDERATED_TOKEN_FILE is not set")
		return failed
	}
	token, err := os.ReadFile(path) //nolint:gosec // the settings name it
	if err == nil && strings.TrimSpace(string(token)) == "" {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("the file is empty")}
	}
	if err != nil {
		v.fail(check, identity.Explain(err, v.Identity.Audience()))
		return failed
	}
	c, err := readClaims(string(token))
	if err != nil {
		v.fail(check, fmt.Errorf("%s: %w; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token", path, err))
		return ""
	}
	want, expected := "", v.Identity.Audience()
	if !v.TokenProxy && (len(c.Audience) != 1 || c.Audience[0] != expected) {
		want = " (want " + expected + ")"
	}
	life, err := c.life(now)
	switch {
	case err != nil:
		v.fail(check, fmt.Errorf("%s %w", path, err))
	case want != "":
		v.problem(warn, check, fmt.Errorf("%s has another audience than %s, which AZURE_AUTHORITY_HOST says; fix: set it where the token's volume is made, or give the federated credential the token's own", path, expected))
	default:
		v.line(ok, check, "%s, for %v", path, life)
	}
	v.more("issuer    %s", shown(c.Issuer))
	v.more("subject   %s", shown(c.Subject))
	v.more("audience  %s%s", shown(strings.Join(c.Audience, ", ")), want)
	if v.TokenProxy {
		v.more("identity bindings exchange this token; no federated credential has to match it")
	} else {
		v.more("a federated credential of the identity must have these three, letter for letter")
	}
	return ""
}

// life returns how long the token is still good for, or why it is not.
func (c claims) life(now time.Time) (time.Duration, error) {
	switch {
	case c.Expires == nil:
		return 0, errors.New("does not say when it expires; fix: AZURE_FEDERATED_TOKEN_FILE must name the projected service-account token")
	case !now.Before(at(c.Expires)):
		return 0, fmt.Errorf("expired %v ago, at %s; fix: is the kubelet renewing it, and is the node's clock right",
			now.Sub(at(c.Expires)).Round(time.Second), at(c.Expires).Format(time.RFC3339))
	case c.NotBefore != nil && now.Before(at(c.NotBefore)):
		return 0, fmt.Errorf("is not valid before %s, in %v; fix: is the node's clock right",
			at(c.NotBefore).Format(time.RFC3339), at(c.NotBefore).Sub(now).Round(time.Second))
	}
	return at(c.Expires).Sub(now).Round(time.Second), nil
}

// at is the time that a claim gives.
func at(seconds *float64) time.Time {
	const latest = 1 << 40 // far beyond all real ones, and within what can be printed
	return time.Unix(int64(math.Max(-latest, math.Min(*seconds, latest))), 0).UTC()
}

// shown is a claim as a person can compare it.
func shown(claim string) string {
	const most = 300
	switch {
	case claim == "":
		return "(none)"
	case len(claim) > most:
		return strings.ToValidUTF8(claim[:most], "") + "…"
	}
	return claim
}
