// Command licenses writes docs/licenses.md: the modules that the programs link, and the licenses of these modules. Run it in
// the checkout.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/licensecheck"

	"cats.example/local/stack"
)

// programs are the programs of the images, and the command cats: module folder and package.
var programs = []struct{ name, module, pkg string }{
	{"frontend", "frontend", "."},
	{"signer", "signer", "."},
	{"emulator", "local", "./emulator"},
	{"cats", "cats", "."},
}

// allowed maps the SPDX identifiers of the licenses that may be linked to their conditions.
var allowed = map[string]string{
	"Apache-2.0":   "the text and the notices accompany the binary",
	"BSD-2-Clause": "the text accompanies the binary",
	"BSD-3-Clause": "the text accompanies the binary",
	"ISC":          "the text accompanies the binary",
	"MIT":          "the text accompanies the binary",
	"MPL-2.0":      "the text accompanies the binary, and the source is available: the Go module proxy has it, unmodified",
	"Unlicense":    "none",
}

const (
	intro = "# Licenses\n\nFor reviewers of the licenses: the modules that the programs link, and their licenses. `make licenses` writes this page; a test compares it with the code. " +
		"The images contain the license texts in `/licenses`.\n\n"
	outro = "\nThe frontend embeds Swagger UI from swgui (both Apache-2.0). `frontend/internal/web/docs/swagger-ui-bundle.js.LICENSE.txt` lists the " +
		"parts of its bundle (MIT, BSD-3-Clause, Apache-2.0); the frontend serves it beside the bundle.\n\n" +
		"`make licenses` rejects all other licenses. `make run` and the tests also use Azurite (npm, MIT), which no image of this project contains: " +
		"`local/package-lock.json` has the licenses of its dependencies.\n"
)

func main() {
	root, err := stack.FindRoot()
	if err == nil {
		var text []byte
		if text, err = page(root); err == nil {
			err = os.WriteFile(filepath.Join(root, "docs", "licenses.md"), text, 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

// page returns the text of docs/licenses.md for the checkout at root, or an error that lists the modules whose license is
// unknown or not allowed.
func page(root string) ([]byte, error) {
	linked := map[string]*module{}
	for i, p := range programs {
		if err := collect(linked, i, filepath.Join(root, p.module), p.pkg); err != nil {
			return nil, fmt.Errorf("modules of %s: %w", p.name, err)
		}
	}
	var b bytes.Buffer
	b.WriteString(intro + "| module | license |")
	for _, p := range programs {
		fmt.Fprintf(&b, " %s |", p.name)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", 2+len(programs)) + "\n")
	var errs []error
	conditions := map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(linked)) {
		m := linked[path]
		ids, err := m.licenses()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
		fmt.Fprintf(&b, "| `%s` | %s |", path, strings.Join(ids, ", "))
		for i := range programs {
			fmt.Fprintf(&b, " %s |", map[bool]string{true: "✓"}[m.in[i]])
		}
		b.WriteString("\n")
		for _, id := range ids {
			conditions[id] = allowed[id]
		}
	}
	b.WriteString("\n| license | conditions |\n| --- | --- |\n")
	for _, id := range slices.Sorted(maps.Keys(conditions)) {
		fmt.Fprintf(&b, "| %s | %s |\n", id, conditions[id])
	}
	b.WriteString(outro)
	return b.Bytes(), errors.Join(errs...)
}

// module is a linked module, with the folders of its linked packages.
type module struct {
	dir     string
	folders map[string]bool
	in      map[int]bool // by index in programs
}

// collect adds the modules that pkg links when it is built for an image.
func collect(linked map[string]*module, program int, dir, pkg string) error {
	//lint:ignore noctx go list ends soon
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,Standard,Module", pkg)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir      string
			Standard bool
			Module   *struct{ Path, Dir string }
		}
		if err := dec.Decode(&p); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("go list: %w", err)
		}
		path, root := "std", ""
		switch {
		case p.Standard:
			// Only the license of Go itself applies: that of crypto/internal/boring covers an object file that is not linked.
			root, _, _ = strings.Cut(filepath.ToSlash(p.Dir)+"/", "/src/")
			p.Dir = root
		case strings.HasPrefix(p.Module.Path, "cats.example/"):
			continue
		default:
			path, root = p.Module.Path, p.Module.Dir
		}
		m := linked[path]
		if m == nil {
			m = &module{dir: root, folders: map[string]bool{}, in: map[int]bool{}}
			linked[path] = m
		}
		m.folders[p.Dir], m.in[program] = true, true
	}
}

// licenses returns the licenses of the module's root and of the folders between it and its linked packages.
func (m *module) licenses() ([]string, error) {
	searched, found := map[string]bool{}, map[string]bool{}
	for folder := range m.folders {
		for dir := folder; len(dir) >= len(m.dir) && !searched[dir]; dir = filepath.Dir(dir) {
			searched[dir] = true
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if !isLicense(e) {
					continue
				}
				text, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				ids, err := identify(text)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Name(), err)
				}
				for _, id := range ids {
					found[id] = true
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no license found")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func isLicense(e fs.DirEntry) bool {
	name := strings.ToUpper(e.Name())
	return e.Type().IsRegular() && filepath.Ext(name) != ".GO" && regexp.MustCompile(`^(LICEN[CS]E|COPYING)`).MatchString(name)
}

// scanner detects the allowed licenses and the restrictive ones, which may be a small part of a text. All others count as
// unknown text, which is rejected as well; loading all 551 takes seconds.
var scanner = sync.OnceValues(func() (*licensecheck.Scanner, error) {
	restrictive := regexp.MustCompile(`GPL|^(SSPL|BUSL|CC-BY|OpenSSL|Commons)`)
	return licensecheck.NewScanner(slices.DeleteFunc(licensecheck.BuiltinLicenses(), func(l licensecheck.License) bool {
		return allowed[l.ID] == "" && !restrictive.MatchString(l.ID)
	}))
})

// identify returns the SPDX identifiers of the licenses in text. It returns an error if one of them is not allowed, or if they
// make up less than 75 % of the text.
func identify(text []byte) ([]string, error) {
	s, err := scanner()
	if err != nil {
		return nil, err
	}
	cov := s.Scan(text)
	if cov.Percent < 75 {
		return nil, fmt.Errorf("only %.0f %% of the text is a known license", cov.Percent)
	}
	var ids []string
	for _, m := range cov.Match {
		if allowed[m.ID] == "" {
			return nil, fmt.Errorf("%s is not an allowed license", m.ID)
		}
		ids = append(ids, m.ID)
	}
	return ids, nil
}
