//go:build tools

// Package tools names the program that the harness builds.
package tools

import _ "go.etcd.io/etcd/server/v3"
