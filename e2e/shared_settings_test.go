package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// startDiffering is start for containers whose shared settings differ, so that the
// frontend is never ready. The signer is.
func startDiffering(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	opts.NotReady = true
	sys := start(t, opts)
	eventually(t, func() error {
		if a := do(t, "GET", sys.SignerOps+"/readyz", "", nil); a.StatusCode != 200 {
			return fmt.Errorf("the signer is not ready: %d %s", a.StatusCode, a.body)
		}
		return nil
	})
	return sys
}

func TestFrontendNamesTheSharedSettingsThatDiffer(t *testing.T) {
	t.Parallel()
	needStand(t)
	const issuer = "https://localhost:1"
	type env = map[string]string
	for name, c := range map[string]struct {
		frontend, signer env
		differ           []string
	}{
		"issuer of the frontend alone": {env{"OIDC_ISSUER": issuer}, nil, []string{"OIDC_ISSUER"}},
		"issuer of the signer alone":   {nil, env{"OIDC_ISSUER": issuer, "OIDC_AUDIENCE": "cats"}, []string{"OIDC_ISSUER"}},
		"issuers that differ by a slash": {
			env{"OIDC_ISSUER": issuer}, env{"OIDC_ISSUER": issuer + "/", "OIDC_AUDIENCE": "cats"}, []string{"OIDC_ISSUER"},
		},
		"discovery": {
			env{"OIDC_ISSUER": issuer, "OIDC_DISCOVERY_URL": issuer + "/b2c"}, env{"OIDC_ISSUER": issuer, "OIDC_AUDIENCE": "cats"}, []string{"OIDC_DISCOVERY_URL"},
		},
		"read access": {env{"READ_ACCESS": "anyone"}, nil, []string{"READ_ACCESS"}},
		"types":       {env{"ACCEPTED_TYPES": "image/png,image/gif"}, env{"ACCEPTED_TYPES": "image/png"}, []string{"ACCEPTED_TYPES"}},
		"a byte":      {env{"MAX_PICTURE_SIZE": "33554433"}, nil, []string{"MAX_PICTURE_SIZE"}},
		"several": {
			env{"MAX_PIXELS": "1000", "MAX_PICTURE_SIZE": "1MiB"}, env{"ACCEPTED_TYPES": "image/png"}, []string{"MAX_PICTURE_SIZE", "MAX_PIXELS", "ACCEPTED_TYPES"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := start(t, stack.SystemOptions{FrontendEnv: c.frontend, SignerEnv: c.signer, NotReady: true})
			for range 3 {
				a := do(t, "GET", sys.FrontendOps+"/readyz", "", nil).want(t, 503)
				if want := "differ: " + strings.Join(c.differ, ", ") + ";"; !strings.Contains(string(a.body), want) {
					t.Fatalf("/readyz says %s; want %s", a.body, want)
				}
			}
			logged(t, sys.Frontend.Log, 0, `"level":"ERROR"`, `"setting":"`+c.differ[0]+`"`)
			b, err := os.ReadFile(sys.Frontend.Log.Path())
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, []byte("shared setting differs")); n != len(c.differ) {
				t.Errorf("%d lines of the log name settings; want %d", n, len(c.differ))
			}
			do(t, "GET", sys.FrontendOps+"/livez", "", nil).want(t, 200) // a restart would not help
		})
	}
	t.Run("another order", func(t *testing.T) {
		t.Parallel()
		start(t, stack.SystemOptions{FrontendEnv: env{"ACCEPTED_TYPES": "image/png,image/gif", "MAX_PICTURE_SIZE": "1MiB"}, SignerEnv: env{"ACCEPTED_TYPES": "image/gif,image/png", "MAX_PICTURE_SIZE": "1048576"}})
	})
}

func TestSignerWithoutIssuerRejectsTokens(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "0")
	opts := withCallers(p.issuer, nil)
	opts.SignerEnv = map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "1GiB"}
	sys := startDiffering(t, opts)
	picture, api := sys.URL+"/cat/mia", sys.SignerAPI
	const contract, version = "Cats-Contract", "1"
	ask(t, "PUT", api+"/v1/picture?user=mia", string(cat), contract, version).want(t, 200)
	var given ticket
	if err := json.Unmarshal(ask(t, "POST", fmt.Sprintf("%s/v1/ticket?user=mia&size=%d", api, len(picture2)), "", contract, version).want(t, 200).body, &given); err != nil {
		t.Fatal(err)
	}
	given.send(t, bytes.NewReader(picture2), int64(len(picture2)))
	before, err := sys.Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	formType, form := form(t, picture2)
	for _, token := range []string{"mew", "mew.mew.mew", p.token(t, "mia", catsAudience), p.token(t, "tom", catsAudience)} {
		for _, a := range []answer{
			as(t, token, "PUT", picture, picture2),
			as(t, token, "POST", picture, form, "Content-Type", formType),
			as(t, token, "DELETE", picture, nil),
			as(t, token, "GET", picture, nil),
			as(t, token, "GET", picture+"/picture", nil),
			as(t, token, "POST", picture+"/upload?size=9", nil),
			as(t, token, "POST", picture+"/upload/"+given.ID+"/commit", nil),
		} {
			a.problem(t, 503, "misconfigured")
		}
		as(t, token, "PUT", api+"/v1/picture?user=mia", picture2, contract, version).want(t, 503)
		as(t, token, "DELETE", api+"/v1/picture?user=mia", nil, contract, version).want(t, 503)
		as(t, token, "GET", api+"/v1/link?user=mia", nil, contract, version).want(t, 503)
	}
	as(t, "", "PUT", picture, picture2).problem(t, 401, "unauthenticated")
	after, err := sys.Blobs(t.Context())
	if diff := cmp.Diff(before, after); err != nil || diff != "" {
		t.Errorf("storage has changed: %v\n%s", err, diff)
	}
	logged(t, sys.Signer.Log, 0, `"http.response.status_code":503`, "misconfigured")
	keepsSecrets(t, sys)
}

// A setting is compared where its tag says so; the help tells of the tag.
func TestBothContainersHaveTheSameSharedSettings(t *testing.T) {
	own(t)
	entry := regexp.MustCompile(`(?m)^  ([A-Z_]+).*\n      .*; the same in both containers$`)
	names := map[string][]string{}
	for _, program := range []string{"frontend", "signer"} {
		help, err := exec.CommandContext(t.Context(), filepath.Join(binDir, program), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, m := range entry.FindAllSubmatch(help, -1) {
			found[string(m[1])] = true
		}
		names[program] = slices.Sorted(maps.Keys(found))
	}
	if diff := cmp.Diff(names["frontend"], names["signer"]); diff != "" || len(names["signer"]) < 6 {
		t.Errorf("frontend (-), signer (+) of %q:\n%s", names["signer"], diff)
	}
}
