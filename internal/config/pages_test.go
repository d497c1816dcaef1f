package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPages: all configuration shown in the docs and in the installed file is valid.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal("no pages", err)
	}
	block := regexp.MustCompile("(?s)```toml\n(.*?)```")
	shown := map[string][]string{}
	for _, page := range pages {
		body, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllStringSubmatch(string(body), -1) {
			if !strings.Contains(m[1], "[host.") { // hosts.toml is another format
				shown[filepath.Base(page)] = append(shown[filepath.Base(page)], m[1])
			}
		}
	}
	if len(shown) < 5 {
		t.Errorf("only %d pages show configuration", len(shown))
	}
	installed, err := os.ReadFile("../../packaging/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	shown["packaging/config.toml"] = []string{regexp.MustCompile(`(?m)^#([a-z_]+ = |[A-Z]\w+ = |\[)`).ReplaceAllString(string(installed), "$1")}
	for page, bodies := range shown {
		for _, body := range bodies {
			c := Default()
			err := c.parse(page, []byte(body))
			if err == nil {
				err = c.Check()
			}
			if err != nil {
				t.Errorf("%s shows\n%s\n%v", page, body, err)
			}
		}
	}
}
