//go:build tools

// Package tools names the program that the harness builds.
package tools

import _ "github.com/versity/versitygw/cmd/versitygw"
