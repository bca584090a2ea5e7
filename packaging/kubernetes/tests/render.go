// Renders a Helm chart with the libraries that Helm renders with, text/template and sprig, and the functions that Helm adds.
// It is not Helm: no subcharts, no hooks, no lookup in a cluster.
//
//	render [-values] [-release NAME] CHART [VALUES.yaml...]
//
// Prints the objects, or with -values the merged values as JSON, which is what Helm holds against values.schema.json.
// Stricter than Helm: a value that values.yaml does not name is an error, as with `helm lint --strict`.
//
// Debian 12 has the libraries: golang-go golang-github-masterminds-sprig-dev golang-gopkg-yaml.v3-dev
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type object = map[string]interface{}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

// As Helm reads YAML: through JSON, so every number is a float64.
func parse(text []byte) (object, error) {
	var value, result object
	if err := yaml.Unmarshal(text, &value); err != nil {
		return nil, err
	}
	asJSON, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(asJSON, &result)
	return result, err
}

func load(name string) object {
	text, err := os.ReadFile(name)
	fail(err)
	value, err := parse(text)
	if err != nil {
		fail(fmt.Errorf("%s: %w", name, err))
	}
	return value
}

// Maps are merged, everything else is replaced, and null removes a key.
func merge(base, over object) object {
	for key, value := range over {
		inner, isMap := value.(object)
		present, wasMap := base[key].(object)
		switch {
		case value == nil:
			delete(base, key)
		case isMap && wasMap:
			base[key] = merge(present, inner)
		default:
			base[key] = value
		}
	}
	return base
}

type files map[string][]byte

func (f files) Get(name string) string { return string(f[name]) }

func (f files) Glob(pattern string) map[string][]byte {
	found := map[string][]byte{}
	for name, content := range f {
		if matches, _ := path.Match(pattern, name); matches {
			found[name] = content
		}
	}
	return found
}

func functions(root *template.Template) template.FuncMap {
	all := sprig.TxtFuncMap()
	delete(all, "env")
	delete(all, "expandenv")
	all["toYaml"] = func(value interface{}) string {
		var out bytes.Buffer
		encoder := yaml.NewEncoder(&out)
		encoder.SetIndent(2)
		if encoder.Encode(value) != nil {
			return ""
		}
		return strings.TrimSuffix(out.String(), "\n")
	}
	all["fromYaml"] = func(text string) object {
		value, err := parse([]byte(text))
		if err != nil {
			return object{"Error": err.Error()}
		}
		return value
	}
	all["required"] = func(message string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return nil, fmt.Errorf("%s", message)
		}
		return value, nil
	}
	all["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := root.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	return all
}

func main() {
	onlyValues := flag.Bool("values", false, "print the merged values")
	release := flag.String("release", "audit-exporter", "name of the release")
	flag.Parse()
	if flag.NArg() == 0 {
		fail(fmt.Errorf("no chart"))
	}
	folder := flag.Arg(0)
	values := load(filepath.Join(folder, "values.yaml"))
	for _, name := range flag.Args()[1:] {
		values = merge(values, load(name))
	}
	if *onlyValues {
		fail(json.NewEncoder(os.Stdout).Encode(values))
		return
	}

	chart := object{}
	for key, value := range load(filepath.Join(folder, "Chart.yaml")) {
		chart[strings.ToUpper(key[:1])+key[1:]] = value
	}
	root := template.New("chart").Option("missingkey=error")
	root.Funcs(functions(root))
	content, names := files{}, []string{}
	fail(filepath.WalkDir(folder, func(at string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, at)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(name, "templates/") {
			content[name] = text
			return nil
		}
		names = append(names, name)
		_, err = root.New(name).Parse(string(text))
		return err
	}))
	sort.Strings(names)
	data := object{
		"Values":  values,
		"Chart":   chart,
		"Files":   content,
		"Release": object{"Name": *release, "Namespace": "audit", "Service": "Helm", "IsInstall": true, "IsUpgrade": false, "Revision": 1},
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tpl") {
			continue
		}
		var out bytes.Buffer
		fail(root.ExecuteTemplate(&out, name, data))
		text := strings.TrimSpace(out.String())
		if strings.HasSuffix(name, ".txt") {
			// the notes are for people
			fmt.Fprintln(os.Stderr, text)
		} else if text != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, text)
		}
	}
}
