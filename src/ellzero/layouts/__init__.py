"""ellzero.layouts"""
